"""Publishing models on the Hugging Face Hub, and registering them in MLflow."""

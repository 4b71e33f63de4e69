"""One module for each client's protocol: a request to a question, rewards to an answer."""

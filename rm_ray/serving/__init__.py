"""A reward server that answers RLHF trainers in their own protocols."""

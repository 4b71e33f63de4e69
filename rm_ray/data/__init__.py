"""Raw rows of any form -> token ids."""

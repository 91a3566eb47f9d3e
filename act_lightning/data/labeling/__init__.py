"""From conversations to labeled token ids: templates, tokens with their places, answer labels."""

"""Token ids, texts and chat templates compared with another implementation's."""

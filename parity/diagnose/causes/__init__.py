"""Known ways a port goes wrong, one file each; each can be reproduced on the reference."""

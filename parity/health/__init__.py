"""How well a model's attention is: figures of every layer and head, and what is wrong with them."""

"""The methods of single papers, each in a folder of its own; the core does not import them."""

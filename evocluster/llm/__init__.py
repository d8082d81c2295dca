"""Language models: what one is (client), the kinds there are, and the wrappers that stack on them."""

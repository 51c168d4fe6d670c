"""An example of a third-party package: a model whose parts have names of their own, and the adapter that names them."""

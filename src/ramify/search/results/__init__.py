"""The result of a search: the best recipe, the page, hyper-parameters for TensorBoard."""

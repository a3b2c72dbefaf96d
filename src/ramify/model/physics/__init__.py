"""Terms of the energy with a closed form and without trained parameters."""

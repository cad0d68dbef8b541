"""The masked variational autoencoder and its objective."""

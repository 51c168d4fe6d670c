"""What decides how good learned head weights are: features, gradients, ablations, and how strongly they are pulled."""

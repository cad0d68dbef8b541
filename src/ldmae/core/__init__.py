"""What every stage needs: keyed randomness, atomic files, errors, devices and the kernels chosen for them."""

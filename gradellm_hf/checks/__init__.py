"""What arguments and files must be, said one way everywhere. May import `errors` only."""

"""What jobs over many prompts share: their prompts, manifest, folder and processes. May import `checks` and `architecture`."""

"""The shipped configurations: gin files, found by `lockstep` from any working directory."""

"""Model families: networks, losses and samplers, each family an `objective.Objective`."""

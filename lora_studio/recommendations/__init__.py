"""Which settings suit a goal, the data and the machine, each with its reason and source."""

"""M3 training of any checkpoint in LLaVA-1.5's format, and readouts for those that have none."""

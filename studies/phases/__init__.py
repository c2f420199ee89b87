"""The nine recorded phases: their defects as switches, their detector, loss and trainer, and what they show."""

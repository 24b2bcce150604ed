"""How a network is made: objectives, networks, schedules, the trainer."""

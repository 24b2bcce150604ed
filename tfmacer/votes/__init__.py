"""Where counts come from: sources of votes, and the driver that asks them."""

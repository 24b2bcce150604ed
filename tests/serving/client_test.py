"""The client, asked as a user asks it."""

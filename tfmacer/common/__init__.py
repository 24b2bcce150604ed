"""What every other package uses: errors, text, numbers as they are shown, progress, commands."""

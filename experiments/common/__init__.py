"""What every other room of the command line uses: files and errors."""

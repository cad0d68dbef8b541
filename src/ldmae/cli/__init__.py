"""The command line: a file for each group of commands, their options and what is printed."""

"""Commands of ``samsans`` that have a file of their own: ``main(argv)`` of each parses, does and prints."""

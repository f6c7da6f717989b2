"""What the tests need: real cores, real stores on the loopback interface, and the command."""

"""What is trained: tasks and their hosts, found by name, and how an error is measured."""

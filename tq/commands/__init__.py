"""What the commands do, a file each; heavy imports happen here, not in tq.cli."""

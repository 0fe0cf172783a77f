"""The one member that watches every topic: bad records, retention, checkpoints, the fabric's figures."""

"""Topics as files: what each says, plan and apply, partitioner, the rights that follow from them."""

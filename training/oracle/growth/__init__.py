"""What a folder of labels holds of a source that grows, shrinks or changes, and what it lacks.

`told` is what a shard says of itself, `folder` the shards of a folder and what is to be labelled,
`stale` takes out what must not or need not stay, `before` is about shards that did not say it yet.
"""

"""The connector runner: pipelines that move records from a source to a sink, as a YAML file says.

Theory of operation. A source gives records in portions, each with the position behind it. A portion goes through the
transforms and into the sink; when the sink has it durably, the position moves, and not before. So a crash repeats at
most one portion, and since a record's id is its producer's or says where it lies, the repetition is the same event:
whatever can tell ids apart has each once. What cannot be read, transformed or taken goes to the dead letter with the
reason, and nothing waits behind it. A sink or a source that is away is waited for, and nothing is skipped.

`spec` is what a file may say, `document` and `loading` read it and say what is wrong with it, `pipeline` moves, and
`runner` keeps many pipelines going. Sources and sinks have a file each.
"""

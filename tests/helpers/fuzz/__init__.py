"""Bad inputs by family: each family makes cases from a seed, and `case.run` and `case.judge` say how the command took
one."""

"""How a request is decided: `decider` asks the router whose turn it is, `degrading` tells what an
overloaded service may take from it.
"""

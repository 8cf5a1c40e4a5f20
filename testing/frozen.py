"""The last module that the fork server of gateways imports: it keeps what is loaded from their collectors.

Otherwise the garbage collection that ends the start of each gateway would go through all of it.
"""

import gc

gc.collect()
gc.freeze()

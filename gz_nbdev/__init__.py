__version__ = "0.1.0"

import warnings

# fastai 2.8 still decorates its layers with torch.jit.script: a warning at every import that no user can act on
warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)

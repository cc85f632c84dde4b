"""Imported once by the fork server (runtime.py), so that no stage pays for these imports again.

What the libraries import only because it is installed is left out, and the garbage collector waits: half the
time. transformers looks for scikit-learn and SciPy, TRL for vLLM, which only its rollouts need (runtime.py
says so). A module that is None counts as not installed; afterwards everything can be imported again.
"""

import gc
import os
import sys
import threading
import warnings

# TRL says at import that it was tested with an older vLLM.
warnings.filterwarnings("ignore", message=".*TRL currently supports vLLM versions.*")
_unused = {"sklearn", "scipy"} | (set() if os.environ.get("PIT_TRAIN_WITH_VLLM") == "1" else {"vllm"})
_hidden = _unused - set(sys.modules)
sys.modules.update(dict.fromkeys(_hidden))  # type: ignore[arg-type]
gc.disable()

import datasets  # noqa: E402, F401
import torch  # noqa: E402
import trl.trainer.reward_trainer  # noqa: E402
import trl.trainer.rloo_trainer  # noqa: E402
import trl.trainer.sft_trainer  # noqa: E402, F401
from tqdm import tqdm  # noqa: E402
from transformers import Trainer  # noqa: E402, F401

gc.enable()
gc.freeze()
for _name in _hidden:
    sys.modules.pop(_name, None)
torch.set_num_threads(1)
# tqdm's default lock is a system semaphore, which a worker's quick exit would leave behind.
tqdm.set_lock(threading.RLock())

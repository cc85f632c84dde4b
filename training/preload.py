"""Imported once by the fork server (runtime.py), so that no stage pays for these imports again."""

import threading
import warnings

# TRL says at import that it was tested with an older vLLM; training does not generate with vLLM.
warnings.filterwarnings("ignore", message=".*TRL currently supports vLLM versions.*")

import datasets  # noqa: E402, F401
import torch  # noqa: E402
import trl.trainer.reward_trainer  # noqa: E402
import trl.trainer.rloo_trainer  # noqa: E402
import trl.trainer.sft_trainer  # noqa: E402, F401
from tqdm import tqdm  # noqa: E402
from transformers import Trainer  # noqa: E402, F401

torch.set_num_threads(1)
# tqdm's default lock is a system semaphore, which a worker's quick exit would leave behind.
tqdm.set_lock(threading.RLock())

"""One recognizer in a process of its own, run by benchmarks/latency.py with the interpreter of its environment.

    python rival_process.py NAME enroll FOLDER      learns FOLDER/samples/<label>/*.wav into FOLDER/NAME.pickle
    python rival_process.py NAME classify FOLDER    names FOLDER/clip.wav once: what a cold command does
    python rival_process.py NAME measure FOLDER     times import, load, first and later clips; one JSON object

Imports nothing of this project where it runs a rival, and of a rival only what it needs.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
import wave
from collections.abc import Callable
from pathlib import Path

N_WARM_UP, N_RUNS = 5, 100
MOST_S = 2  # of processor time; a slow one is run less often, 10 times at least
RATE_HZ = 16_000
N_CEPSTRA = 13
CLOCKS = time.perf_counter, time.process_time
# As in the accuracy table (benchmarks/rivals.py): its window is filled best with much silence before the word.
OWW_BEFORE_SAMPLES, OWW_AFTER_SAMPLES = 14_400, 4_800


def read_wav(path: Path):
    """int16 [n_samples] of a mono file."""
    import numpy as np

    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def nearest(embedding, learned) -> str:
    """The label whose mean embedding has the smallest cosine distance, all centered on what was learned."""
    import numpy as np

    labels, prototypes, center = learned
    query = embedding - center
    return labels[int(np.argmax(prototypes @ query / np.linalg.norm(query)))]


def prototypes_of(embeddings: dict[str, list]):
    import numpy as np

    center = np.mean([row for rows in embeddings.values() for row in rows], axis=0)
    means = np.stack([np.mean(rows, axis=0) - center for rows in embeddings.values()])
    return list(embeddings), means / np.linalg.norm(means, axis=1, keepdims=True), center


class OpenWakeWord:
    """Its embedding, mean over windows, and the nearest prototype; clips as they are, or padded as for its accuracy.

    The finding of the word, which its row in that table has from edgealign, is not part of it.
    """

    learn = staticmethod(prototypes_of)

    def __init__(self, *padded: str) -> None:
        self.padding = (OWW_BEFORE_SAMPLES, OWW_AFTER_SAMPLES) if padded else (0, 0)

    def load(self) -> None:
        import openwakeword
        from openwakeword.utils import AudioFeatures

        models = Path(openwakeword.__file__).parent / "resources" / "models"
        self.features = AudioFeatures(
            str(models / "melspectrogram.onnx"),
            str(models / "embedding_model.onnx"),
            ncpu=1,
            inference_framework="onnx",
        )

    def stages(self) -> dict[str, Callable]:
        import numpy as np

        features = self.features

        def windows(samples):
            mel = features._get_melspectrogram(np.pad(samples, self.padding))
            starts = range(0, len(mel) - 75, 8)
            return np.stack([mel[start : start + 76] for start in starts])[..., None].astype(np.float32)

        return {
            "decode": read_wav,
            "front end": windows,
            "encoder": lambda batch: features.embedding_model_predict(batch).reshape(len(batch), -1).mean(axis=0),
            "match": nearest,
        }


class SherpaOnnx:
    """As far as it goes without a model of its own: voice activity with the silero model that openWakeWord ships, the
    filterbank of its kaldi-native-fbank, and its SpeakerEmbeddingManager among embeddings that are made here (the mean
    filterbank of a clip), since its encoders have to be downloaded. What it answers is therefore worth nothing."""

    def __init__(self, *vad_model: str) -> None:
        self.vad_model = vad_model

    def load(self) -> None:
        import kaldi_native_fbank
        import sherpa_onnx

        self.sherpa_onnx = sherpa_onnx
        self.options = kaldi_native_fbank.FbankOptions()
        self.options.frame_opts.dither = 0
        self.options.mel_opts.num_bins = 80
        self.online_fbank = kaldi_native_fbank.OnlineFbank
        if self.vad_model:
            config = sherpa_onnx.VadModelConfig()
            config.silero_vad.model = self.vad_model[0]
            config.sample_rate = RATE_HZ
            self.vad = sherpa_onnx.VoiceActivityDetector(config, buffer_size_in_seconds=10)

    def learn(self, embeddings: dict[str, list]):
        return embeddings

    def manager(self, learned):
        manager = self.sherpa_onnx.SpeakerEmbeddingManager(80)
        for label, rows in learned.items():
            manager.add(label, [row.tolist() for row in rows])
        return manager

    def stages(self) -> dict[str, Callable]:
        import numpy as np

        def fbank(samples):
            online = self.online_fbank(self.options)
            online.accept_waveform(RATE_HZ, samples)
            online.input_finished()
            return np.stack([online.get_frame(i) for i in range(online.num_frames_ready)])

        def voice(samples):
            floats = samples.astype(np.float32) / 32768
            if self.vad_model:
                for start in range(0, len(floats) - 511, 512):
                    self.vad.accept_waveform(floats[start : start + 512])
                self.vad.flush()
                self.vad.reset()
            return floats

        managers = {}

        def search(embedding, learned):
            if id(learned) not in managers:
                managers[id(learned)] = self.manager(learned)
            return managers[id(learned)].search(embedding, 0.0)

        return {
            "decode": read_wav,
            "word finding": voice,
            "front end": fbank,
            "encoder": lambda frames: frames.mean(axis=0),
            "match": search,
        }


class LibrosaKnn:
    """Mean and standard deviation of librosa's 13 MFCCs over the clip, scaled; scikit-learn's nearest neighbor."""

    def load(self) -> None:
        import librosa
        import sklearn.neighbors
        import sklearn.pipeline
        import sklearn.preprocessing

        self.librosa, self.sklearn = librosa, sklearn

    def learn(self, embeddings: dict[str, list]):
        scaler, knn = self.sklearn.preprocessing.StandardScaler(), self.sklearn.neighbors.KNeighborsClassifier(1)
        model = self.sklearn.pipeline.make_pipeline(scaler, knn)
        rows = [row for rows in embeddings.values() for row in rows]
        return model.fit(rows, [label for label, rows in embeddings.items() for _ in rows])

    def stages(self) -> dict[str, Callable]:
        import numpy as np

        return {
            "decode": lambda path: self.librosa.load(path, sr=RATE_HZ)[0],
            "front end": lambda samples: self.librosa.feature.mfcc(y=samples, sr=RATE_HZ, n_mfcc=N_CEPSTRA),
            "encoder": lambda mfcc: np.concatenate([mfcc.mean(axis=1), mfcc.std(axis=1)]),
            "match": lambda embedding, model: str(model.predict(embedding[None])[0]),
        }


class LibrosaDtw:
    """librosa's 13 MFCCs, and its dynamic time warping against every recording."""

    def load(self) -> None:
        import librosa

        self.librosa = librosa

    def learn(self, embeddings: dict[str, list]):
        return embeddings

    def stages(self) -> dict[str, Callable]:
        def closest(query, learned):
            distances = {
                label: min(
                    self.librosa.sequence.dtw(query, row, backtrack=False)[-1, -1] / (query.shape[1] + row.shape[1])
                    for row in rows
                )
                for label, rows in learned.items()
            }
            return min(distances, key=distances.get)

        return {
            "decode": lambda path: self.librosa.load(path, sr=RATE_HZ)[0],
            "front end": lambda samples: self.librosa.feature.mfcc(y=samples, sr=RATE_HZ, n_mfcc=N_CEPSTRA),
            "match": closest,
        }


class Edgealign:
    """This project, in Python."""

    def __init__(self, variant: str) -> None:
        self.variant = variant

    def load(self) -> None:
        from edgealign.bundle import Bundle

        self.bundle = Bundle.open(variant=self.variant)
        self.front_end = self.bundle.front_end
        self.numbers = self.front_end.window_samples, self.front_end.hop_samples, self.front_end.energy_floor

    def learn(self, embeddings: dict[str, list]):
        return embeddings

    def matcher(self, learned):
        import numpy as np

        from edgealign import kernels

        rows = np.concatenate([np.stack(rows) for rows in learned.values()])
        labels = np.repeat(np.arange(len(learned), dtype=np.int32), [len(rows) for rows in learned.values()])
        kinds = np.full(len(labels), kernels.RECORDING, np.int32)
        bundle = self.bundle
        made = kernels.Matcher(rows, labels, kinds, len(learned), bundle.bank, bundle.calibration, bundle.text_weight)
        return made, list(learned)

    def encode(self, frames):
        return self.bundle.encode(frames[None])[0]

    def stages(self) -> dict[str, Callable]:
        import numpy as np

        from edgealign import kernels
        from edgealign.audio import AudioFile
        from edgealign.words import at_least, sound_spans

        front_end, windows = self.front_end, self.bundle.windows

        def word(log_mels):
            first, end, _ = max(sound_spans(log_mels, windows).tolist(), key=lambda span: span[2])
            return at_least(log_mels, int(first), int(end), windows.min_frames, front_end.energy_floor)

        matchers = {}

        def match(embedding, learned):
            if id(learned) not in matchers:
                matchers[id(learned)] = self.matcher(learned)
            matcher, labels = matchers[id(learned)]
            return labels[matcher.classify(embedding, 2)[0].label]

        return {
            "decode": lambda path: np.concatenate(list(AudioFile(str(path)).blocks(RATE_HZ))),
            "front end": lambda samples: kernels.log_mel(samples, self.bundle.filters, *self.numbers),
            "word finding": word,
            "encoder": self.encode,
            "match": match,
        }


class TorchEager(Edgealign):
    """The same, with the encoder as torch runs it before any export: export/weights, float32, inference mode."""

    def __init__(self, n_threads: str) -> None:
        super().__init__("fp32")
        self.n_threads = int(n_threads)

    def load(self) -> None:
        super().load()
        import torch

        from edgealign.export import graph
        from edgealign.train.text_to_speech import Checkpoint

        torch.set_num_threads(self.n_threads)
        self.torch = torch
        weights = Path(graph.__file__).parent / "weights" / "text-to-speech.pt"
        encoders = Checkpoint.load(weights).encoders
        self.encoder = graph.ExportedSpeech(encoders, torch.zeros(self.bundle.dim)).eval()

    def encode(self, frames):
        with self.torch.inference_mode():
            return self.encoder(self.torch.from_numpy(frames[None]))[0].numpy()


RIVALS = {
    "openWakeWord": OpenWakeWord,
    "sherpa-onnx": SherpaOnnx,
    "MFCC + kNN": LibrosaKnn,
    "MFCC + DTW": LibrosaDtw,
    "edgealign": Edgealign,
    "torch eager": TorchEager,
}


def embed(stages: dict[str, Callable], path: Path):
    value = path
    for name, stage in stages.items():
        if name != "match":
            value = stage(value)
    return value


def measure(rival, folder: Path, learned) -> dict:
    """Times by the clock and of the processor, which other processes disturb less: in ms, in this order."""
    import numpy as np

    started = time.perf_counter(), time.process_time()
    rival.load()
    load_s = [clock() - since for clock, since in zip(CLOCKS, started, strict=True)]
    stages = rival.stages()
    taken: dict[str, list[tuple[float, ...]]] = {name: [] for name in (*stages, "file to label", "pcm to label")}
    first: tuple[float, ...] | None = None
    measured_since = time.process_time()
    for turn in range(-N_WARM_UP, N_RUNS):
        if turn >= 10 and time.process_time() - measured_since > MOST_S:
            break
        value, before = folder / "clip.wav", [clock() for clock in CLOCKS]
        times = {}
        for name, stage in stages.items():
            value = stage(value, learned) if name == "match" else stage(value)
            now = [clock() for clock in CLOCKS]
            times[name] = np.subtract(now, before) * 1e3
            before = now
        times["file to label"] = sum(times.values())
        times["pcm to label"] = times["file to label"] - times["decode"]
        if first is None:
            first = times["file to label"]
        if turn >= 0:
            for name, milliseconds in times.items():
                taken[name].append(milliseconds)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    summaries = {}
    for name, milliseconds in taken.items():
        (median_ms, cpu_median_ms), (p95_ms, _) = np.percentile(milliseconds, [50, 95], axis=0).round(4).tolist()
        summaries[name] = {"median_ms": median_ms, "p95_ms": p95_ms, "cpu_median_ms": cpu_median_ms}
    return {
        "load_ms": [round(1e3 * seconds, 3) for seconds in load_s],
        "first_ms": first.round(3).tolist(),
        "stages": summaries,
        "n_runs": len(taken["pcm to label"]),
        "peak_rss_mb": round(int(peak.split()[1]) * 1024 / 1e6, 1),
        "answer": value,
    }


def main(name: str, task: str, folder: Path, *options: str) -> None:
    rival = RIVALS[name](*options)
    saved = folder / f"{name}.pickle"  # of this benchmark's own making, read by nobody else
    if task == "enroll":
        rival.load()
        stages = rival.stages()
        embeddings = {
            label.name: [embed(stages, path) for path in sorted(label.glob("*.wav"))]
            for label in sorted((folder / "samples").iterdir())
        }
        saved.write_bytes(pickle.dumps(rival.learn(embeddings)))
        return
    learned = pickle.loads(saved.read_bytes())
    if task == "measure":
        print(json.dumps(measure(rival, folder, learned)))
        return
    rival.load()
    stages = rival.stages()
    print(stages["match"](embed(stages, folder / "clip.wav"), learned))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), *sys.argv[4:])

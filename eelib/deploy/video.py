"""Videos and cameras, a frame at a time, by PyAV (``pip install '.[video]'``)."""

import contextlib
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from PIL import Image

from eelib.files import InputError, reserve
from eelib.preprocess import MAX_PIXELS

RATE = Fraction(25)  # frames a second of a drawing where the source does not state its own


class VideoError(InputError):
    """A video or a camera cannot be read or written; the message names it."""


class Video:
    """A video file, or a camera by its number; a context manager that closes it.

    Raises:
        VideoError: there is none, it cannot be decoded, or it has no picture.
    """

    def __init__(self, source: Path | int):
        self.name = f"camera:{source}" if isinstance(source, int) else str(source)
        try:
            self.container = _camera(source) if isinstance(source, int) else av.open(source, **_FILE)
            self.stream = self.container.streams.video[0]
        except IndexError:
            raise VideoError(f"{self.name}: holds no video") from None
        except (av.FFmpegError, ValueError, OverflowError) as error:
            raise VideoError(f"{self.name}: cannot be opened ({getattr(error, 'strerror', error)})") from None
        self.rate = self.stream.average_rate or RATE
        self.frames = self.stream.frames  # as the file states it, 0 where it does not

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def __iter__(self) -> Iterator[tuple[Image.Image, float | None]]:
        """Upright RGB frames in turn, each with its time in seconds."""
        try:
            for frame in self.container.decode(self.stream):
                if frame.width * frame.height > MAX_PIXELS:
                    size, most = f"{frame.width} x {frame.height} px", f"{MAX_PIXELS / 1e6:g} million pixels"
                    raise VideoError(f"{self.name}: frames of {size}; expected at most {most}")
                image = frame.to_image()
                yield (image.rotate(frame.rotation, expand=True) if frame.rotation else image), frame.time
        except VideoError:
            raise
        except (av.FFmpegError, ValueError, OverflowError) as error:
            raise VideoError(f"{self.name}: cannot be decoded further ({getattr(error, 'strerror', error)})") from None


# a playlist must not make it fetch something, and what is said of the video need not be text
_FILE = {"options": {"protocol_whitelist": "file"}, "metadata_errors": "replace"}


def _camera(number: int) -> av.container.InputContainer:
    if sys.platform.startswith("linux"):
        device = Path(f"/dev/video{number}")
        if not device.exists():
            raise VideoError(f"camera:{number}: there is no {device}")
        return av.open(str(device), format="v4l2")
    if sys.platform == "darwin":
        return av.open(str(number), format="avfoundation", options={"framerate": "30"})
    raise VideoError(f"camera:{number}: cameras are read on Linux and macOS; expected a video file")


class VideoWriter:
    """Frames into a video file, which has its name once it is closed.

    Args:
        path: of the file; its suffix names the format.
        rate: frames a second.
    """

    def __init__(self, path: Path, rate: Fraction):
        self.path, self.rate, self.stream = path, rate, None
        target = path.resolve()
        self.partial = target.with_name(f".{target.stem}.partial{target.suffix}")  # the suffix names the format
        try:
            self.reserved = reserve(self.partial, wait=False)
        except BlockingIOError:
            raise VideoError(f"{path}: another process writes this file") from None
        try:
            self.container = av.open(self.partial, "w")
        except av.FFmpegError as error:
            raise VideoError(f"{path}: cannot be written ({error.strerror})") from None

    def add(self, image: Image.Image) -> None:
        """Write a frame; all get the size of the first, cut to even numbers as the codec wants them."""
        try:
            if self.stream is None:
                self.stream = self.container.add_stream("h264", rate=self.rate)
                self.stream.width, self.stream.height = image.width // 2 * 2 or 2, image.height // 2 * 2 or 2
                self.stream.pix_fmt = "yuv420p"
            size = self.stream.width, self.stream.height
            if image.size != size:
                image = image.crop((0, 0, *size)) if abs(image.width - size[0]) < 2 else image.resize(size)
            self.container.mux(self.stream.encode(av.VideoFrame.from_image(image)))
        except av.FFmpegError as error:
            raise VideoError(f"{self.path}: cannot be written ({error.strerror})") from None

    def close(self, keep: bool = True) -> None:
        """Finish the file, or drop it."""
        try:
            if self.stream is not None and keep:
                self.container.mux(self.stream.encode(None))
            with contextlib.suppress(av.FFmpegError):  # a container without a frame cannot be closed properly
                self.container.close()
            if self.stream is not None and keep:
                self.partial.replace(self.path.resolve())
        finally:
            self.partial.unlink(missing_ok=True)
            self.reserved.close()

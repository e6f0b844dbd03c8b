"""Frames of videos: exactly those that decoding from the start shows; and what is refused."""

import base64
import io
import random
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from cascadevl.core.errors import MediaError, MissingExtra
from cascadevl.core.messages import Video
from cascadevl.preprocessing.image import MediaLimits
from cascadevl.preprocessing.spec_file import Spec
from cascadevl.preprocessing.video import is_video, open_footage, open_frames
from cascadevl.preprocessing.video_file import VideoFile
from tests.preprocessing.films import decoded, painted, silence, write_video

FILMS: dict[str, tuple[str, dict[str, Any]]] = {
    "h264 with B-frames": ("a.mp4", {"b_frames": 3}),
    "h264, open groups": ("a.mp4", {"options": {"x264-params": "open-gop=1:keyint=12:bframes=3:scenecut=0"}}),
    "h264 in fragments": ("a.mp4", {"b_frames": 3, "flags": {"movflags": "frag_keyframe+empty_moov"}}),
    "h264, other names of mp4": ("a.mov", {"b_frames": 2}),
    "matroska": ("a.mkv", {"b_frames": 3, "audio": True}),
    "h264, one group alone": ("a.mp4", {"b_frames": 3, "gop": 250}),
    "h264 without any times": ("a.h264", {"b_frames": 3, "container": "h264"}),
    "transport stream": ("a.ts", {"b_frames": 3, "audio": True}),
    "hevc, open groups": (
        "a.mp4",
        {"codec": "libx265", "options": {"x265-params": "keyint=12:bframes=3:open-gop=1:log-level=none"}},
    ),
    "vp8": ("a.webm", {"codec": "libvpx", "gop": 20}),
    "vp9": ("a.webm", {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "lag-in-frames": "16"}}),
    "mpeg4 with B-frames in avi": ("a.avi", {"codec": "mpeg4", "b_frames": 2}),
    "mpeg2": ("a.mpg", {"codec": "mpeg2video", "b_frames": 2}),
    "every frame a key": ("a.avi", {"codec": "mjpeg", "pixels": "yuvj420p"}),
    "varying rate": ("a.mkv", {"b_frames": 3, "times_ms": [n * n for n in range(60)]}),
}


@pytest.fixture(scope="module", params=FILMS)
def film(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name, settings = FILMS[request.param]
    return write_video(tmp_path_factory.mktemp("film") / name, 60, **settings)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return write_video(tmp_path / "plain.mp4", 20, b_frames=2, gop=5)


def shown(source: Any, indices: list[int]) -> list[np.ndarray]:
    with closing(open_footage(Video(source))) as footage:
        return [np.asarray(frame) for frame in footage.frames(indices)]


def same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    return len(ours) == len(theirs) and all(map(np.array_equal, ours, theirs))


def test_every_number_gives_the_frame_that_decoding_from_the_start_shows(film: Path) -> None:
    expected = decoded(film)
    with closing(open_footage(Video(film))) as footage:
        assert len(footage) == len(expected) == 60
    draw = random.Random(0)
    choices = [[0], [59], [11, 12, 13], [5, 29, 30, 31, 59], [7, 7, 7, 40], list(range(60))]
    for indices in [*choices, *(sorted(draw.choices(range(60), k=6)) for _ in range(5))]:
        assert same(shown(film, indices), [expected[index] for index in indices]), indices


def test_all_frames_differ_so_that_the_test_above_can_fail(plain: Path) -> None:
    assert len({frame.tobytes() for frame in decoded(plain)}) == 20


def test_packets_of_vp8_that_show_nothing_are_not_counted(tmp_path: Path) -> None:
    """Each keyframe but the first comes twice, first hidden: a bit of its header is off."""
    path = write_video(tmp_path / "a.webm", 40, codec="libvpx", gop=10)
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.webm"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            for shown_too in [False, True] if packet.is_keyframe and packet.pts else [True] if packet.size else []:
                data = bytearray(bytes(packet))
                data[0] &= 0xFF if shown_too else 0xFF ^ 0x10
                copy = av.Packet(bytes(data))
                copy.pts = copy.dts = (packet.pts or 0) + 20 + 5 * shown_too
                copy.time_base, copy.stream, copy.is_keyframe = packet.time_base, stream, packet.is_keyframe
                target.mux(copy)
    expected = decoded(path)
    assert len(expected) == 40
    assert same(shown(tmp_path / "b.webm", [0, 9, 10, 25, 39]), [expected[index] for index in (0, 9, 10, 25, 39)])
    with closing(open_footage(Video(tmp_path / "b.webm"))) as footage:
        assert len(footage) == 40


def test_frames_far_apart_are_reached_without_decoding_what_lies_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "long.mp4", 600, b_frames=2, gop=12)
    count = 0
    from_key, from_start = VideoFile._from_key, VideoFile._from_start

    def counted(frames: Iterator[Any]) -> Iterator[Any]:
        nonlocal count
        for frame in frames:
            count += 1
            yield frame

    monkeypatch.setattr(VideoFile, "_from_key", lambda self, *key: counted(from_key(self, *key)))
    monkeypatch.setattr(VideoFile, "_from_start", lambda self: counted(from_start(self)))
    assert len(shown(path, [37, 212, 213, 401, 575])) == 5
    assert count < 60


def test_frames_are_decoded_one_at_a_time(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    upright = VideoFile._upright
    monkeypatch.setattr(VideoFile, "_upright", lambda self, frame: made.append(0) or upright(self, frame))
    with open_frames(Video(plain, num_frames=8), Spec()) as frames:
        assert len(frames) == 8 and not made
        for number, _ in enumerate(frames, start=1):
            assert len(made) == number


def test_the_rule_of_the_spec_and_the_clip_choose(plain: Path) -> None:
    def indices(video: Video, **spec: Any) -> tuple[int, ...]:
        with open_frames(video, Spec(**spec)) as frames:
            assert len(list(frames)) == len(frames) == len(frames.sizes)
            return frames.indices

    assert indices(Video(plain)) == (1, 3, 6, 8, 11, 13, 15, 18)
    assert indices(Video(plain, num_frames=4)) == (2, 7, 12, 16)
    assert indices(Video(plain), num_frames=4, frame_rule="hf") == (2, 7, 12, 17)
    assert indices(Video(plain, 0.2, 0.4, num_frames=2)) == (6, 8)
    assert indices(Video(plain), frame_rule="fps10") == (1, 4, 6, 9, 11, 14, 16, 19)
    assert indices(Video(plain, num_frames=30))[0] == 0


def test_the_same_frames_come_from_path_bytes_and_data_url(plain: Path) -> None:
    data = plain.read_bytes()
    url = "data:video/mp4;base64," + base64.b64encode(data).decode()
    expected = shown(str(plain), [3, 17])
    for source in (plain, data, bytearray(data), url):
        assert same(shown(source, [3, 17]), expected)


def test_a_recording_that_begins_in_the_middle_of_a_group_counts_from_its_first_keyframe(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.ts", 60, b_frames=2, gop=12)
    data = path.read_bytes()
    expected = decoded(path)[12:]
    with av.open(str(path)) as file:
        second = [packet.pos or 0 for packet in file.demux(video=0) if packet.is_keyframe][1]
    whole = shown(data[: 188 * 3] + data[second - 188 * 9 :], [0, 5, 30])
    assert same(whole, [expected[index] for index in (0, 5, 30)])


MATRICES = {
    (1, 0, 0, 1): lambda a: a,
    (0, 1, -1, 0): lambda a: np.rot90(a, -1),  # a phone held upright: clockwise
    (-1, 0, 0, -1): lambda a: np.rot90(a, 2),
    (0, -1, 1, 0): np.rot90,
    (-1, 0, 0, 1): np.fliplr,
    (1, 0, 0, -1): np.flipud,
    (0, 1, 1, 0): lambda a: a.swapaxes(0, 1),
    (0, -1, -1, 0): lambda a: np.rot90(a, 2).swapaxes(0, 1),
}


@pytest.mark.parametrize("matrix", MATRICES)
def test_phone_videos_are_turned_upright(matrix: tuple[int, int, int, int], plain: Path) -> None:
    a, b, c, d = (value * 65536 for value in matrix)
    stored, turned = (
        struct.pack(">9i", *values)
        for values in ((65536, 0, 0, 0, 65536, 0, 0, 0, 2**30), (a, b, 0, c, d, 0, 0, 0, 2**30))
    )
    data = plain.read_bytes()
    place = data.index(stored, data.index(b"tkhd"))
    data = data[:place] + turned + data[place + 36 :]
    frame = decoded(plain)[4]
    expected = MATRICES[matrix](frame)
    assert np.array_equal(shown(data, [4])[0], expected)
    with open_frames(Video(data), Spec()) as frames:
        assert frames.sizes[0] == expected.shape[1::-1]


@pytest.mark.parametrize("pixels", ["bgr0", "gray", "gray10le", "yuv420p10le", "yuv444p", "bgra", "yuva420p"])
@pytest.mark.parametrize("size", [(48, 32), (17, 15)])
def test_every_way_of_storing_pixels_becomes_rgb(pixels: str, size: tuple[int, int], tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", 3, size, codec="ffv1", pixels=pixels)
    frame = shown(path, [2])[0].astype(int)
    assert frame.shape == (size[1], size[0], 3)
    expected = painted(2, size).astype(int)
    if pixels.startswith("gray"):
        assert (np.ptp(frame, axis=-1) == 0).all()
        frame, expected = frame.mean(-1), expected @ [0.299, 0.587, 0.114]
    assert np.abs(frame - expected).mean() < (12 if "420" in pixels else 3)


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as file:
        stream: Any = file.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 8, 8, "bgra"
        pixels = np.zeros((8, 8, 4), np.uint8)
        pixels[:4] = (255, 0, 0, 255)
        frame = av.VideoFrame.from_ndarray(pixels, format="rgba").reformat(format="bgra")
        file.mux([*stream.encode(frame), *stream.encode(None)])
    seen = shown(tmp_path / "a.mkv", [0])[0]
    assert seen[0, 0].tolist() == [255, 0, 0] and seen[7, 7].tolist() == [255, 255, 255]


def test_times_that_only_the_average_describes(tmp_path: Path) -> None:
    """Frames 0 … 59 at n² ms; the header says 25 a second, and by that a clip is cut."""
    path = write_video(tmp_path / "a.mkv", 60, times_ms=[n * n for n in range(60)])
    with closing(open_footage(Video(path))) as footage:
        assert footage.fps == pytest.approx(25)
    with open_frames(Video(path, 1.0, 2.0, num_frames=3), Spec()) as frames:
        assert frames.indices == (29, 37, 46)


# Animations, folders, lists


def coloured(*levels: int) -> list[Image.Image]:
    return [Image.new("RGB", (20, 10), (level, 255 - level, 0)) for level in levels]


LEVELS = (0, 51, 102, 153, 204, 255)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_are_videos_whose_frames_have_their_times(kind: str) -> None:
    file = io.BytesIO()
    times_ms = [100, 100, 200, 200, 300, 300]
    first, *rest = coloured(*LEVELS)
    options = {"lossless": True} if kind == "WEBP" else {}
    first.save(file, kind, save_all=True, append_images=rest, duration=times_ms, **options)
    footage = open_footage(Video(file.getvalue()))
    assert (len(footage), footage.header_s, footage.fps) == (6, pytest.approx(1.2), pytest.approx(5))
    for _ in range(2):
        frames = list(footage.frames([1, 1, 4]))
        assert [frame.getpixel((3, 3)) for frame in frames] == [(51, 204, 0), (51, 204, 0), (204, 51, 0)]
    with open_frames(Video(file.getvalue(), 0.4, 0.8, 2), Spec()) as chosen:
        assert chosen.indices == (2, 3) and chosen.sizes == [(20, 10)] * 2


def test_transparent_animations_lie_on_white_and_frames_without_a_time_last_a_tenth() -> None:
    file = io.BytesIO()
    frames = [Image.new("RGBA", (4, 4), (level, 0, 0, 0)) for level in (0, 9)]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], duration=0, lossless=True)
    footage = open_footage(Video(file.getvalue()))
    assert footage.fps == pytest.approx(10)
    assert next(footage.frames([0])).getpixel((0, 0)) == (255, 255, 255)


def test_a_folder_is_read_in_natural_order_at_three_frames_a_second(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, image in zip((10, 2, 1, 9, 30, 4), coloured(*LEVELS), strict=True):
        image.save(folder / f"frame {number}.PNG")
    (folder / "notes.txt").write_text("not a frame")
    (folder / ".hidden.png").write_text("not a frame")
    assert [frame[0, 0, 0] for frame in shown(folder, list(range(6)))] == [102, 51, 255, 153, 0, 204]
    with open_frames(Video(folder, 1.0, 1.5, 2), Spec()) as frames:
        assert frames.indices == (3, 3)


def test_a_list_is_taken_as_it_is_unless_a_number_is_asked_for(tmp_path: Path) -> None:
    images = coloured(*LEVELS)
    images[3].save(tmp_path / "3.png")
    mixed = [*images[:2], np.asarray(images[2]), tmp_path / "3.png", *images[4:]]
    for source in (mixed, tuple(mixed), np.stack([np.asarray(image) for image in images])):
        with open_frames(Video(source), Spec(num_frames=2)) as frames:
            assert [frame.getpixel((0, 0)) for frame in frames] == [(level, 255 - level, 0) for level in LEVELS]
    with open_frames(Video(mixed, num_frames=3), Spec()) as frames:
        assert frames.indices == (0, 2, 3)
    odd = [Image.new("RGB", (3, 5)), Image.new("RGB", (7, 2))]
    assert open_frames(Video(odd), Spec()).sizes == [(3, 5), (7, 2)]


# What is refused


def refused(source: Any, *words: str, limits: MediaLimits | None = None, **video: Any) -> None:
    with pytest.raises(MediaError) as caught, open_frames(Video(source, **video), Spec(), limits or MediaLimits()) as f:
        list(f)
    for word in words:
        assert word in str(caught.value), caught.value


def _sound(tmp_path: Path) -> bytes:
    with av.open(str(tmp_path / "sound.mp4"), "w") as file:
        stream: Any = file.add_stream("aac", rate=32000)
        file.mux([*stream.encode(silence(1024)), *stream.encode(None)])
    return (tmp_path / "sound.mp4").read_bytes()


def _no_frames(tmp_path: Path) -> bytes:
    with av.open(str(tmp_path / "none.mp4"), "w", options={"movflags": "empty_moov"}) as file:
        stream: Any = file.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 16
        file.start_encoding()
    return (tmp_path / "none.mp4").read_bytes()


def test_what_is_no_video_is_refused_with_a_reason(tmp_path: Path, plain: Path, capfd: Any) -> None:
    data = plain.read_bytes()
    mkv = write_video(tmp_path / "a.mkv", 60).read_bytes()
    early = write_video(tmp_path / "b.mp4", 60, flags={"movflags": "faststart"}).read_bytes()
    (tmp_path / "text.mp4").write_text("This is not a video.\n" * 30)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "1.png").write_bytes(b"no")
    refused(tmp_path / "text.mp4", "text.mp4", "This is", "Expected mp4")
    refused(tmp_path / "nowhere.mp4", "does not exist")
    refused(b"", "The video in memory is empty")
    refused(bytes(5000), "cannot be opened as a video")
    refused(_sound(tmp_path), "no video track that can be decoded: it holds audio")
    refused(_no_frames(tmp_path), "holds no frame")
    refused(data[: len(data) * 2 // 3], "damaged or cut off")
    refused(early[: len(early) * 2 // 3], "is cut off", "of 60 frames are there")
    refused(early[:-3], "The video in memory is cut off: 59 of 60 frames are there. Download or copy it again.")
    refused(mkv[: len(mkv) // 2], "is cut off", "of 2.4 s")
    refused("http://127.0.0.1/a.mp4", "not fetched", "the video itself as bytes")
    refused("data:video/mp4,abc", "data:video/mp4;base64,")
    refused(tmp_path / "empty", "holds no pictures")
    refused(tmp_path / "broken", "frame 1:", "no picture")
    refused([], "holds no pictures")
    refused([Image.new("RGB", (2, 2))], "no times", start_s=1.0)
    refused([3], "The list of frames, frame 1", "type int is no picture")
    refused(7, "type int is no video", "a folder of frames")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("head", [b"GIF89a", b"RIFF\x00\x00\x00\x00WEBPVP8X"])
def test_an_animation_that_is_only_a_head_is_told_by_name_and_not_by_its_object(head: bytes) -> None:
    with (
        pytest.raises(MediaError, match="The video in memory cannot be decoded") as told,
        open_frames(Video(head), Spec()),
    ):
        pass
    assert "BytesIO" not in str(told.value)


def test_impossible_clips_are_refused(plain: Path) -> None:
    refused(plain, "lasts 0.80 s", "begins at 2 s", start_s=2.0)
    for wrong in ({"start_s": 3, "end_s": 3}, {"start_s": 3, "end_s": 1}, {"end_s": 0}, {"start_s": -1}):
        with pytest.raises(MediaError, match="clip"):
            Video(plain, **wrong)
    for number in (0, -1, 2.5, True, "3"):
        with pytest.raises(MediaError, match="num_frames"):
            Video(plain, num_frames=number)  # type: ignore[arg-type]


def test_limits_hold_before_decoding_and_count_the_clip_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: Path
) -> None:
    ten_hours = write_video(tmp_path / "long.mkv", 11, times_ms=[3_600_000 * n for n in range(11)])
    with open_frames(Video(ten_hours, 0, 0.4, 2), Spec()) as frames:
        assert len(list(frames)) == 2
    refused([plain] * 600, "600 frames", "at most 512")
    refused(plain, "at most 20 are allowed", "max_video_bytes", limits=MediaLimits(max_video_bytes=20))
    refused(plain, "48×32", "max_frame_pixels", limits=MediaLimits(max_frame_pixels=48 * 32 - 1))
    refused(coloured(0), "20×10", "max_frame_pixels", limits=MediaLimits(max_frame_pixels=199))
    refused(plain, "at most 3", "max_frames", limits=MediaLimits(max_frames=3))
    refused(plain, f"{10**12} frames", num_frames=10**12)
    refused(write_video(tmp_path / "a.h264", 60, container="h264"), "max_video_s", limits=MediaLimits(max_video_s=2))
    monkeypatch.setattr(VideoFile, "_scan", lambda self: pytest.fail("read before it was refused"))
    refused(ten_hours, "36,000 s", "at most 14,400", "start and end", "max_video_s")


PLAYLISTS = {
    "hls.m3u8": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{url}\n#EXT-X-ENDLIST\n",
    "concat.txt": "ffconcat version 1.0\nfile '{url}'\n",
    "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "manifest.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static">'
    "<Period><AdaptationSet><Representation><BaseURL>{url}</BaseURL></Representation></AdaptationSet></Period></MPD>",
}


@pytest.mark.parametrize("name", PLAYLISTS)
@pytest.mark.parametrize("renamed", [False, True])
def test_playlists_reach_neither_the_network_nor_other_files(
    name: str, renamed: bool, tmp_path: Path, plain: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        for url in (f"http://127.0.0.1:{server.getsockname()[1]}/a.ts", f"file:{plain}", plain.name):
            path = tmp_path / ("renamed.mp4" if renamed else name)
            path.write_text(PLAYLISTS[name].format(url=url))
            refused(path, "cannot be opened as a video", "playlists are not followed")
            refused(path.read_bytes(), "cannot be opened as a video")
        with pytest.raises(TimeoutError):
            server.accept()


def test_hostile_bytes_give_frames_or_a_media_error(tmp_path: Path) -> None:
    draw = random.Random(1)
    for name, settings in (FILMS["h264 with B-frames"], FILMS["matroska"], FILMS["mpeg4 with B-frames in avi"]):
        data = write_video(tmp_path / name, 20, **settings).read_bytes()
        for _ in range(25):
            damaged = bytearray(data[: draw.randrange(1, 2 * len(data))])
            for _ in range(draw.choice([1, 3, 30])):
                damaged[draw.randrange(len(damaged))] = draw.randrange(256)
            with suppress(MediaError), open_frames(Video(bytes(damaged)), Spec()) as frames:
                assert all(frame.mode == "RGB" for frame in frames)


def test_without_pyav_the_extra_is_named_and_frames_still_work(monkeypatch: pytest.MonkeyPatch, plain: Path) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtra, match=r"pip install 'cascadevl\[video\]'"):
        open_footage(Video(plain))
    assert len(open_frames(Video(coloured(1, 2)), Spec())) == 2


def test_videos_are_told_from_pictures_by_name_and_content(tmp_path: Path, plain: Path) -> None:
    still, moving = tmp_path / "still.gif", tmp_path / "moving.gif"
    coloured(1)[0].save(still)
    coloured(1)[0].save(moving, save_all=True, append_images=coloured(200))
    unnamed = plain.rename(tmp_path / "download")
    (tmp_path / "text.png").write_text("no")
    for path, expected in ((unnamed, True), (moving, True), (still, False), (tmp_path, True), ("x.MKV", True)):
        assert is_video(path) is expected, path
    assert not is_video(tmp_path / "text.png") and not is_video("nowhere.png")

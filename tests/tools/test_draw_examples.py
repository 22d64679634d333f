"""The first picture of README can be drawn again."""


def test_images_beside_predictions(load_tool, monkeypatch):
    module = load_tool("draw_examples")
    monkeypatch.setattr(module, "IMAGES", ("1008.png",))
    picture = module.draw()
    image, found = picture[:, :256], picture[:, -256:]
    assert picture.shape == (256, 2 * 256 + 4, 3)
    # The image is grey, segments have colours.
    assert (image.max(2) == image.min(2)).all()
    assert (found.max(2) > found.min(2) + 50).mean() > 0.05

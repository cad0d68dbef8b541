"""The web page: generate, look into the autoencoder, compare autoencoders, read the report.

The computing is in plain functions, which need no Gradio: `generate`, `looking`, `compare`, `uploads`,
`reports`. Around them `workbench` opens the models, `turns` lets visitors share one computer, and the
`…_tab` modules, `page` and `serve` are the skin.
"""

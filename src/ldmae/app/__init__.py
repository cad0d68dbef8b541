"""The web app: generate, explore the autoencoder, compare autoencoders, read the report.

The computing is in plain functions, which need no Gradio: `generate`, `explorer`, `compare`, `uploads`.
Around them `workbench` opens the models, `lines` and `turns` let visitors share one computer, and the
`…_tab` modules, `components`, `page` and `serve` are what they see.
"""

"""What tasks share about data: sources, decoding, masks, colours and the stream of samples."""

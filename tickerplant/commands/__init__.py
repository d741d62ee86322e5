"""One module per command of `tickerplant`."""

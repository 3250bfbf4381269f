"""What a judge is trained to minimize, compared on labels of people: `judge bench objectives`."""

package pace

// lineWeight is what an earlier point counts beside the next one: a line is that
// of the last 30 points or so.
const lineWeight = 1 - 1.0/32

// line is a straight one through points, by weighted least squares.
type line struct{ n, x, y, xx, xy float64 }

func (l *line) add(x, y float64) {
	for _, sum := range []struct {
		to  *float64
		add float64
	}{{&l.n, 1}, {&l.x, x}, {&l.y, y}, {&l.xx, x * x}, {&l.xy, x * y}} {
		*sum.to = *sum.to*lineWeight + sum.add
	}
}

// mean is the middle of the points; 0, 0 if there are none.
func (l *line) mean() (x, y float64) {
	if l.n == 0 {
		return 0, 0
	}
	return l.x / l.n, l.y / l.n
}

// slope is prior as long as the points do not differ by more than about spread
// in x, and later what they tell.
func (l *line) slope(prior, spread float64) float64 {
	if l.n == 0 {
		return prior
	}
	x, y := l.mean()
	weight := spread * spread
	return (l.xy/l.n - x*y + weight*prior) / (max(l.xx/l.n-x*x, 0) + weight)
}

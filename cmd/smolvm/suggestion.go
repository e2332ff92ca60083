package main

// closest returns the name that a misspelt one was most likely meant to be, or "" if none
// is near.
func closest(misspelt string, names []string) string {
	// A name of a few letters is near to any other of a few letters.
	best, least := "", 1+len(misspelt)/3
	for _, name := range names {
		if d := distance(misspelt, name); d <= least && (best == "" || d < least) {
			best, least = name, d
		}
	}
	return best
}

// distance is the number of letters to put in, take out, replace or swap with the next one
// that makes one word of another.
func distance(a, b string) int {
	// rows are the distances from the beginnings of a to those of b, for the letter of a at
	// hand and the two before it.
	var rows [3][]int
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		last, above, row := rows[(i+1)%3], rows[(i+2)%3], rows[i%3]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := above[j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			row[j] = min(change, above[j]+1, row[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], last[j-2]+1)
			}
		}
	}
	return rows[len(a)%3][len(b)]
}

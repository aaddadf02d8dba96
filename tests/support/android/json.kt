// Just enough of this package's API to type-check the sample.

package org.json
class JSONObject(s: String) { fun getJSONArray(n: String): JSONArray = TODO()
    fun getJSONObject(n: String): JSONObject = TODO()
    fun isNull(n: String): Boolean = TODO()
    fun getString(n: String): String = TODO()
    fun getInt(n: String): Int = TODO()
    fun getBoolean(n: String): Boolean = TODO()
    fun keys(): Iterator<String> = TODO() }
class JSONArray { fun length(): Int = 0
    fun getString(i: Int): String = "" }
